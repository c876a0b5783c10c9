// Errors a user can act on: one sentence each, saying what is wrong, the value, what was expected
// and what to do. They become a status and rare_trt_last_error at the C border.
#pragma once

#include <stdexcept>
#include <string>

namespace rare_trt {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller's arguments make no sense.
class ArgumentError : public Error {
 public:
  using Error::Error;
};

// The scan cannot be segmented as it is.
class ScanError : public Error {
 public:
  using Error::Error;
};

// The package is absent, damaged, tampered with or too new.
class PackageError : public Error {
 public:
  using Error::Error;
};

// The backend cannot run here, or gave answers that cannot be trusted.
class BackendError : public Error {
 public:
  using Error::Error;
};

// An engine was not built for the shapes a scan needs.
class ShapeError : public BackendError {
 public:
  using BackendError::BackendError;
};

}  // namespace rare_trt
