#include "fake_tensorrt.h"

#include <algorithm>
#include <array>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <openvino/runtime/core.hpp>
#include <stdexcept>

#include "sessions/nvidia.h"
#include "sessions/session.h"

namespace rare_trt {
namespace {

constexpr std::size_t kWeightBytes = 4096;

FakeTensorRt& fake() { return FakeTensorRt::instance(); }

void violated(const std::string& what) { fake().violations.push_back(what); }

bool has_context() {
  void* context = nullptr;
  return cuCtxGetCurrent(&context) == 0 && context != nullptr;
}

std::size_t count(const Dims& shape) {
  std::size_t product = 1;
  for (const auto size : shape) product *= static_cast<std::size_t>(size);
  return product;
}

// The state that a run depends on, as it was when the run was queued.
struct Run {
  std::array<Dims, kInputNames.size()> shapes;
  std::array<cuda::Address, kInputNames.size()> inputs;
  cuda::Address labels;
  std::shared_ptr<ov::InferRequest> request;
  std::weak_ptr<bool> context;
  int times = 0;
};

void compute(Run& run) {
  ++fake().computed;
  if (run.context.expired()) violated("a run of a destroyed context");
  auto* labels = reinterpret_cast<std::uint8_t*>(run.labels);
  const std::size_t size = count({run.shapes[4][0], run.shapes[5][0], run.shapes[6][0]});
  const bool replayed = run.times++ > 0;
  if (fake().spoil == "nothing") return;
  if (fake().spoil == "zeros" || (fake().spoil == "replays" && replayed)) {
    std::fill_n(labels, size, std::uint8_t{0});
    return;
  }
  for (std::size_t at = 0; at < run.inputs.size(); ++at) {
    const ov::Shape shape(run.shapes[at].begin(), run.shapes[at].end());
    run.request->set_tensor(kInputNames[at], ov::Tensor(ov::element::f32, shape,
                                                        reinterpret_cast<void*>(run.inputs[at])));
  }
  run.request->infer();
  const auto found = run.request->get_tensor(kLabelsName);
  std::copy_n(found.data<const std::uint8_t>(), size, labels);
}

// Runs outlive the call that queued them: a captured run is computed at each launch of its graph.
std::list<Run>& runs() {
  static std::list<Run> all;
  return all;
}

class FakeContext final : public EngineContext {
 public:
  FakeContext(std::shared_ptr<ov::InferRequest> request,
              const std::map<std::string, Shapes>& profile)
      : request_(std::move(request)), profile_(profile) {
    ++fake().live_contexts;
  }
  ~FakeContext() override {
    if (!has_context()) violated("a context was destroyed without CUDA's context");
    --fake().live_contexts;
  }

  bool set_input_shape(const char* name, const Dims& shape) override {
    if (fake().failing("set_input_shape")) return false;
    const auto& [low, typical, high] = profile_.at(name);
    if (shape.size() != low.size()) return false;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      if (shape[axis] < low[axis] || shape[axis] > high[axis]) return false;
    }
    shapes_[index(name)] = shape;
    adapted_ = false;
    return true;
  }

  bool set_address(const char* name, cuda::Address address) override {
    if (fake().failing("set_address") || address % 256 != 0) return false;
    if (name == std::string(kLabelsName)) {
      labels_ = address;
    } else {
      inputs_[index(name)] = address;
    }
    adapted_ = false;
    return true;
  }

  std::string unknown_inputs() override { return fake().failing("unknown_inputs") ? "in_i" : ""; }

  Dims labels_shape() override {
    if (fake().failing("labels_shape")) return {1, 1, 1, 1};
    return {1, shapes_[4][0], shapes_[5][0], shapes_[6][0]};
  }

  std::size_t scratch_bytes() override {
    return fake().failing("scratch_bytes") ? 0 : count(shapes_[0]) * 16;
  }

  void set_scratch(cuda::Address address, std::size_t size) override {
    scratch_ = address;
    adapted_ = false;
    if (address % 256 != 0) violated("scratch memory that is not aligned");
    if (size < count(shapes_[0]) * 16) violated("too little scratch memory");
    if (fake_room(address) < size) violated("scratch memory that is not the caller's");
  }

  bool enqueue(cuda::Stream stream) override {
    if (fake().failing("enqueue")) return false;
    ++fake().enqueued;
    if (!has_context()) violated("enqueued without CUDA's context");
    if (stream == nullptr) violated("the default stream");
    check_matrices();
    check_memory();
    int capturing = 0;
    if (cuStreamIsCapturing(stream, &capturing) != 0) violated("a stream of another context");
    if (capturing != 0 && !adapted_) {
      violated("captured before the first run with new shapes and addresses");
    }
    adapted_ = true;
    runs().push_back({shapes_, inputs_, labels_, request_, alive_});
    const auto call = [](void* run) { compute(*static_cast<Run*>(run)); };
    return cuLaunchHostFunc(stream, call, &runs().back()) == 0;
  }

 private:
  void check_matrices() const {
    for (std::size_t axis = 0; axis < 3; ++axis) {
      const Dims &into = shapes_[1 + axis], &out = shapes_[4 + axis];
      if (into[1] != shapes_[0][2 + axis] || out[1] != into[0]) {
        violated("matrices that do not fit each other or the image");
      }
    }
  }

  void check_memory() const {
    std::map<cuda::Address, std::size_t> spans = {
        {labels_, count({shapes_[4][0], shapes_[5][0], shapes_[6][0]})},
        {scratch_, count(shapes_[0]) * 16}};
    for (std::size_t at = 0; at < inputs_.size(); ++at) {
      spans[inputs_[at]] = count(shapes_[at]) * sizeof(float);
    }
    if (spans.size() != inputs_.size() + 2) violated("two tensors at one address");
    cuda::Address end = 0;
    for (const auto& [start, size] : spans) {
      if (start < end) violated("tensors that overlap");
      if (fake_room(start) < size) violated("no room for a tensor");
      end = start + size;
    }
  }

  static std::size_t index(const std::string& name) {
    const auto found = std::find(kInputNames.begin(), kInputNames.end(), name);
    if (found == kInputNames.end()) throw std::logic_error(name + " is no input");
    return static_cast<std::size_t>(found - kInputNames.begin());
  }

  std::array<Dims, kInputNames.size()> shapes_;
  std::array<cuda::Address, kInputNames.size()> inputs_{};
  cuda::Address labels_ = 0, scratch_ = 0;
  bool adapted_ = false;  // whether there was a run with the present shapes and addresses
  std::shared_ptr<ov::InferRequest> request_;
  const std::map<std::string, Shapes>& profile_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class FakeEngine final : public LoadedEngine {
 public:
  FakeEngine(const std::string& graph, cuda::Address weights, std::map<std::string, Shapes> profile)
      : weights_(weights), profile_(std::move(profile)) {
    static ov::Core core;
    auto model = core.compile_model(core.read_model(graph), "CPU",
                                    ov::hint::inference_precision(ov::element::f32));
    request_ = std::make_shared<ov::InferRequest>(model.create_infer_request());
    ++fake().live_engines;
  }
  ~FakeEngine() override {
    if (cuMemFree_v2(weights_) != 0) violated("an engine was destroyed without CUDA's context");
    --fake().live_engines;
  }

  std::unique_ptr<EngineContext> create_context() override {
    if (fake().failing("create_context")) return nullptr;
    return std::make_unique<FakeContext>(request_, profile_);
  }

 private:
  cuda::Address weights_;
  const std::map<std::string, Shapes> profile_;
  std::shared_ptr<ov::InferRequest> request_;
};

class FakeLibrary final : public EngineLibrary {
 public:
  std::unique_ptr<LoadedEngine> load(const std::string& blob, const EngineEntry& entry) override {
    cuda::Address weights = 0;
    if (!has_context()) violated("loaded without CUDA's context");
    if (fake().failing("load") || cuMemAlloc_v2(&weights, kWeightBytes) != 0) {
      throw EngineLoadError("the fake cannot load the engine (OutOfMemory)");
    }
    return std::make_unique<FakeEngine>(blob, weights, entry.profile);
  }

  std::string logged_errors() override { return "it logged no reason"; }
};

}  // namespace

FakeTensorRt& FakeTensorRt::instance() {
  static FakeTensorRt only;
  return only;
}

bool FakeTensorRt::failing(const std::string& function) {
  int& left = faults[function];
  return left > 0 && left-- > 0;
}

std::string tensorrt_version() { return FakeTensorRt::kVersion; }

std::unique_ptr<EngineLibrary> open_tensorrt() {
  if (FakeTensorRt::instance().failing("open")) throw BackendError("the fake has no runtime");
  return std::make_unique<FakeLibrary>();
}

}  // namespace rare_trt
