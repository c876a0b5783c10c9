// The conformance vectors: inputs with the results of Python.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "plan/resampling.h"
#include "scan/geometry.h"

namespace rare_trt {

using Json = nlohmann::json;

inline std::filesystem::path repository() { return RARE_TRT_REPOSITORY; }

inline Json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  REQUIRE_MESSAGE(file, path.string());
  return Json::parse(file);
}

// The vectors of one file, written by make_vectors.py.
inline Json vectors(const std::string& name) {
  return read_json(repository() / "native" / "tests" / "vectors" / (name + ".json"));
}

inline bool is_refused(const Json& vector) { return vector.value("refused", false); }

// JSON has neither NaN nor infinity: null stands for both.
inline double number_of(const Json& value) {
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

inline Affine affine_of(const Json& values) {
  Affine affine;
  for (int at = 0; at < 16; ++at) {
    affine(at / 4, at % 4) = number_of(values[static_cast<std::size_t>(at)]);
  }
  return affine;
}

inline Triple triple_of(const Json& values) {
  return {number_of(values[0]), number_of(values[1]), number_of(values[2])};
}

// Equal but for the last bits of a float32.
inline bool close(double found, double known) {
  return std::abs(found - known) <= 2e-7 * std::max(1.0, std::abs(known));
}

inline bool close(const Triple& found, const Json& known) {
  return close(found[0], known[0]) && close(found[1], known[1]) && close(found[2], known[2]);
}

inline bool close(const Affine& found, const Json& known) {
  return (found - affine_of(known)).cwiseAbs().maxCoeff() < 1e-9;
}

}  // namespace rare_trt
