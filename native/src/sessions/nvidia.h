// TensorRT's runtime as sessions use it: engines from bytes, contexts from engines.
//
// nvidia.cpp implements it with TensorRT where its headers are found, without_nvidia.cpp refuses
// elsewhere, and the tests have a fake. All calls come from one thread at a time with the GPU's
// context current.
#pragma once

#include <memory>
#include <string>

#include "errors.h"
#include "package/manifest.h"
#include "sessions/driver.h"

namespace rare_trt {

// The library could not load an engine: too little memory, or an engine for another machine.
class EngineLoadError : public BackendError {
 public:
  using BackendError::BackendError;
};

// An execution context for one set of shapes. The caller owns its scratch memory.
class EngineContext {
 public:
  virtual ~EngineContext() = default;

  // These return false where the library refuses.
  virtual bool set_input_shape(const char* name, const Dims& shape) = 0;
  virtual bool set_address(const char* name, cuda::Address address) = 0;
  virtual bool enqueue(cuda::Stream stream) = 0;

  // Inputs whose shapes are missing; empty where all are known.
  virtual std::string unknown_inputs() = 0;
  virtual Dims labels_shape() = 0;

  // Bytes of scratch memory that the shapes need; 0 where they are unknown.
  virtual std::size_t scratch_bytes() = 0;
  virtual void set_scratch(cuda::Address address, std::size_t size) = 0;
};

class LoadedEngine {
 public:
  virtual ~LoadedEngine() = default;

  // Null where the library refuses.
  virtual std::unique_ptr<EngineContext> create_context() = 0;
};

class EngineLibrary {
 public:
  virtual ~EngineLibrary() = default;

  // The engine in `blob`, checked against `entry`. Throws EngineLoadError where the library cannot
  // load it, BackendError where it differs from `entry`.
  virtual std::unique_ptr<LoadedEngine> load(const std::string& blob, const EngineEntry& entry) = 0;

  // The errors that the library logged since the last engine was loaded.
  virtual std::string logged_errors() = 0;
};

// The installed release, such as 10.13.3.9; throws BackendError where it cannot be loaded.
std::string tensorrt_version();

// TensorRT's runtime; throws BackendError where it cannot be loaded.
std::unique_ptr<EngineLibrary> open_tensorrt();

}  // namespace rare_trt
