// TensorRT's runtime as sessions see it: engines from bytes, contexts from engines.
//
// nvinfer.cpp is TensorRT itself, built where its headers are; without_nvinfer.cpp stands in for it
// elsewhere, and the tests bring a fake one. Everything here is called by one thread at a time with
// the GPU's context current.
#pragma once

#include <memory>
#include <string>

#include "errors.h"
#include "package/manifest.h"
#include "sessions/tensorrt/driver.h"

namespace rare_trt {

// The library made no engine of a plan, for want of memory or because it does not fit.
class EngineLoadError : public BackendError {
 public:
  using BackendError::BackendError;
};

// One set of shapes of an engine. Scratch memory is the caller's.
class EngineContext {
 public:
  virtual ~EngineContext() = default;

  // False where the library refuses.
  virtual bool set_input_shape(const char* name, const Dims& shape) = 0;
  virtual bool set_address(const char* name, cuda::Address address) = 0;
  virtual bool enqueue(cuda::Stream stream) = 0;

  // Inputs without which shapes cannot be told; empty where all is known.
  virtual std::string unknown_inputs() = 0;
  virtual Dims labels_shape() = 0;

  // Scratch memory that the shapes need, 0 where the library cannot tell.
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

  // The engine in `plan`, found to be what `entry` says. Throws EngineLoadError where the library
  // makes none, BackendError where it is another one.
  virtual std::unique_ptr<LoadedEngine> load(const std::string& plan, const EngineEntry& entry) = 0;

  // What the library logged as errors since the last engine was loaded.
  virtual std::string last_words() = 0;
};

// The release that is installed, as 10.13.3.9; throws BackendError where it cannot be loaded.
std::string tensorrt_version();

// Its runtime; throws BackendError.
std::unique_ptr<EngineLibrary> open_tensorrt();

}  // namespace rare_trt
