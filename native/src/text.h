// Text from values, the same in every locale.
#pragma once

#include <locale>
#include <sstream>
#include <string>

namespace rare_trt {

// The concatenated parts.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  (out << ... << parts);
  return out.str();
}

// `value` with at most `digits` significant digits.
inline std::string number(double value, int digits = 6) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out.precision(digits);
  out << value;
  return out.str();
}

// The values, separated by `between`.
template <class Values>
std::string join(const Values& values, const char* between, int digits = 4) {
  std::string out;
  for (const auto& value : values) {
    if (!out.empty()) out += between;
    out += number(static_cast<double>(value), digits);
  }
  return out;
}

}  // namespace rare_trt
