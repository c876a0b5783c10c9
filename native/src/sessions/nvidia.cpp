// TensorRT 10.3 to 11.x. Its library is loaded at run time: all of its interface but a few
// functions is virtual, so nothing is linked and the same build runs without TensorRT.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <deque>
#include <mutex>
#include <set>
#include <string>

#include "constants.h"
#include "sessions/nvidia.h"
#include "sessions/session.h"
#include "text.h"

static_assert(NV_TENSORRT_MAJOR == 11 || (NV_TENSORRT_MAJOR == 10 && NV_TENSORRT_MINOR >= 3),
              "rare_trt takes TensorRT 10.3 to 11.x");

namespace rare_trt {
namespace {

namespace trt = nvinfer1;

// The errors that TensorRT logged. TensorRT keeps the first logger of a process, so there is only
// one, and it is never destroyed.
class Log final : public trt::ILogger {
 public:
  static Log& instance() {
    static Log* only = new Log();
    return *only;
  }

  // Called from any of TensorRT's threads; an exception would end the process.
  void log(Severity severity, const char* message) noexcept override {
    if (severity != Severity::kERROR && severity != Severity::kINTERNAL_ERROR) return;
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      errors_.emplace_back(message);
      if (errors_.size() > kKeptErrors) errors_.pop_front();
    } catch (...) {
      return;
    }
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    errors_.clear();
  }

  std::string logged_errors() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string out;
    for (const auto& error : errors_) out += (out.empty() ? "" : "; ") + error;
    return out.empty() ? "it logged no reason" : out;
  }

 private:
  std::mutex mutex_;
  std::deque<std::string> errors_;
};

// The functions that are not virtual.
struct Functions {
  static const Functions& loaded() {
    static const Functions functions;
    return functions;
  }

  decltype(&createInferRuntime_INTERNAL) create_runtime;
  std::string version;

 private:
  Functions() {
    const std::string name = text("libnvinfer.so.", NV_TENSORRT_MAJOR);
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw BackendError(text("TensorRT cannot be loaded (", dlerror(), "): install TensorRT ",
                              NV_TENSORRT_MAJOR, " as docs/how-to/engines.md describes"));
    }
    find(library, "createInferRuntime_INTERNAL", create_runtime);
    for (const char* part : {"Major", "Minor", "Patch", "Build"}) {
      std::int32_t (*number)() noexcept = nullptr;
      find(library, text("getInferLib", part, "Version").c_str(), number);
      version += text(version.empty() ? "" : ".", number());
    }
  }

  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) {
      throw BackendError(
          text("TensorRT's library has no ", name,
               ": install TensorRT 10.3 to 11.x as docs/how-to/engines.md describes"));
    }
  }
};

trt::Dims to_trt(const Dims& shape) {
  trt::Dims found{};
  found.nbDims = static_cast<std::int32_t>(shape.size());
  for (std::size_t axis = 0; axis < shape.size() && axis < trt::Dims::MAX_DIMS; ++axis) {
    found.d[axis] = shape[axis];
  }
  return found;
}

Dims from_trt(const trt::Dims& shape) {
  // -1 axes: no such tensor.
  return shape.nbDims < 0 ? Dims{} : Dims{shape.d, shape.d + shape.nbDims};
}

void* pointer(cuda::Address address) {
  return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address));
}

class Context final : public EngineContext {
 public:
  explicit Context(std::unique_ptr<trt::IExecutionContext> context)
      : context_(std::move(context)) {}

  bool set_input_shape(const char* name, const Dims& shape) override {
    return context_->setInputShape(name, to_trt(shape));
  }

  bool set_address(const char* name, cuda::Address address) override {
    return context_->setTensorAddress(name, pointer(address));
  }

  bool enqueue(cuda::Stream stream) override { return context_->enqueueV3(stream); }

  std::string unknown_inputs() override {
    const char* names[kInputNames.size()] = {};
    const std::int32_t count = context_->inferShapes(kInputNames.size(), names);
    if (count == 0) return "";
    std::string out;
    for (const char* name : names) {
      if (name != nullptr) out += (out.empty() ? "" : ", ") + std::string(name);
    }
    return out.empty() ? "its inputs" : out;
  }

  Dims labels_shape() override { return from_trt(context_->getTensorShape(kLabelsName)); }

  std::size_t scratch_bytes() override { return context_->updateDeviceMemorySizeForShapes(); }

  void set_scratch(cuda::Address address, std::size_t size) override {
    context_->setDeviceMemoryV2(pointer(address), static_cast<std::int64_t>(size));
  }

 private:
  std::unique_ptr<trt::IExecutionContext> context_;
};

class TensorRtEngine final : public LoadedEngine {
 public:
  explicit TensorRtEngine(std::unique_ptr<trt::ICudaEngine> engine) : engine_(std::move(engine)) {}

  std::unique_ptr<EngineContext> create_context() override {
    std::unique_ptr<trt::IExecutionContext> context(
        engine_->createExecutionContext(trt::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (!context) return nullptr;
    return std::make_unique<Context>(std::move(context));
  }

  // How the engine differs from the manifest's entry; empty where it does not.
  std::string fault(const EngineEntry& entry) const {
    std::set<std::string> names, expected(kInputNames.begin(), kInputNames.end());
    expected.insert(kLabelsName);
    for (std::int32_t at = 0; at < engine_->getNbIOTensors(); ++at) {
      names.insert(engine_->getIOTensorName(at));
    }
    if (names != expected) {
      std::string found;
      for (const auto& name : names) found += (found.empty() ? "" : ", ") + name;
      return "its inputs and outputs are " + found;
    }
    for (const auto& name : names) {
      const bool is_labels = name == kLabelsName;
      const auto mode = is_labels ? trt::TensorIOMode::kOUTPUT : trt::TensorIOMode::kINPUT;
      const auto type = is_labels ? trt::DataType::kUINT8 : trt::DataType::kFLOAT;
      if (engine_->getTensorIOMode(name.c_str()) != mode)
        return name + " is an output instead of an input, or the reverse";
      if (engine_->getTensorDataType(name.c_str()) != type) return name + " is of another type";
      if (engine_->getTensorLocation(name.c_str()) != trt::TensorLocation::kDEVICE) {
        return name + " is not on the GPU";
      }
    }
    for (const auto& [name, shapes] : entry.profile) {
      if (profile(name) != shapes) return "its profile for " + name + " differs";
    }
    return "";
  }

 private:
  Shapes profile(const std::string& name) const {
    Shapes found;
    std::size_t at = 0;
    for (const auto which : {trt::OptProfileSelector::kMIN, trt::OptProfileSelector::kOPT,
                             trt::OptProfileSelector::kMAX}) {
      found[at++] = from_trt(engine_->getProfileShape(name.c_str(), 0, which));
    }
    return found;
  }

  std::unique_ptr<trt::ICudaEngine> engine_;
};

class TensorRt final : public EngineLibrary {
 public:
  TensorRt() {
    auto* made = Functions::loaded().create_runtime(&Log::instance(), NV_TENSORRT_VERSION);
    runtime_.reset(static_cast<trt::IRuntime*>(made));
    if (!runtime_) {
      throw BackendError(text("TensorRT cannot be started (", logged_errors(),
                              "): install TensorRT as docs/how-to/engines.md describes"));
    }
    // Host code in an engine would run with the rights of the user who segments the scan.
    runtime_->setEngineHostCodeAllowed(false);
  }

  std::unique_ptr<LoadedEngine> load(const std::string& blob, const EngineEntry& entry) override {
    Log::instance().clear();
    std::unique_ptr<trt::ICudaEngine> engine(
        runtime_->deserializeCudaEngine(blob.data(), blob.size()));
    if (!engine) {
      throw EngineLoadError(text(entry.file, ": TensorRT ", Functions::loaded().version,
                                 " cannot load it (", logged_errors(),
                                 "): run `rare-trt build` on this machine"));
    }
    auto found = std::make_unique<TensorRtEngine>(std::move(engine));
    const std::string fault = found->fault(entry);
    if (!fault.empty()) {
      throw BackendError(text(entry.file, ": is not the engine that the manifest describes (",
                              fault, "): run `rare-trt build` again"));
    }
    return found;
  }

  std::string logged_errors() override { return Log::instance().logged_errors(); }

 private:
  std::unique_ptr<trt::IRuntime> runtime_;
};

}  // namespace

std::string tensorrt_version() { return Functions::loaded().version; }

std::unique_ptr<EngineLibrary> open_tensorrt() { return std::make_unique<TensorRt>(); }

}  // namespace rare_trt
