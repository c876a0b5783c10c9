// Errors that a user can act on. The message is one sentence: the fault, the value, what was
// expected and what to do. The C API turns them into a status and the text of rare_trt_last_error.
#pragma once

#include <stdexcept>
#include <string>

namespace rare_trt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The caller's arguments are invalid.
struct ArgumentError : Error {
  using Error::Error;
};

// The scan cannot be segmented as it is.
struct ScanError : Error {
  using Error::Error;
};

// The package is absent, damaged, tampered with or too new.
struct PackageError : Error {
  using Error::Error;
};

// The backend cannot run here, or its labels cannot be trusted.
struct BackendError : Error {
  using Error::Error;
};

// An engine was not built for the shapes a scan needs.
struct ShapeError : BackendError {
  using BackendError::BackendError;
};

}  // namespace rare_trt
