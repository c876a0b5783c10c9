#include "sessions/openvino.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <mutex>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>
#include <sstream>
#include <thread>
#include <utility>

#include "errors.h"
#include "storage/files.h"
#include "text.h"

namespace rare_trt {
namespace {

constexpr const char* kDevice = "CPU";

// The Core of this process. Never destroyed: OpenVINO's own threads and libraries may be gone
// before static objects are.
ov::Core& core() {
  // Before the static object's lock, which in a forked process nobody may be left to release.
  static std::atomic<pid_t> loaded_in = 0;
  loaded_in = this_process(loaded_in);
  static ov::Core* only = new ov::Core();
  return *only;
}

// The precision is explicit: OpenVINO's default is bf16 where the CPU supports it.
ov::AnyMap configuration(bool bf16, std::optional<int> threads) {
  ov::AnyMap found = {ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                      ov::hint::inference_precision(bf16 ? ov::element::bf16 : ov::element::f32)};
  if (threads) found.insert(ov::inference_num_threads(*threads));
  return found;
}

// CPUs that this process may run on.
int cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

// The quota of one control group: in version 2 one file "QUOTA PERIOD", in version 1 two files.
double quota_of(const std::filesystem::path& group) {
  std::string quota;
  double period = 0;
  if (!(std::ifstream(group / "cpu.max") >> quota >> period)) {
    std::ifstream(group / "cpu.cfs_quota_us") >> quota;
    std::ifstream(group / "cpu.cfs_period_us") >> period;
  }
  // Without a limit the quota is "max", or -1 in version 1.
  const double time = std::strtod(quota.c_str(), nullptr);
  return time > 0 && period > 0 ? time / period : std::numeric_limits<double>::infinity();
}

std::string last_line(const std::exception& error) {
  std::istringstream lines(error.what());
  std::string line, last;
  while (std::getline(lines, line)) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) last = line;
  }
  return last;
}

// Calls `work`; failures of OpenVINO become BackendError.
template <class Work>
auto using_openvino(const Work& work) {
  try {
    return work();
  } catch (const ov::Exception& error) {
    throw BackendError(text("OpenVINO cannot be used (", last_line(error), "): install it again"));
  }
}

// The same key as in the Python runtime, which shares compiled models through the cache.
Cache::Key model_key(const Package& package, const GraphEntry& entry, bool bf16) {
  auto features = core().get_property(kDevice, ov::device::capabilities);
  std::sort(features.begin(), features.end());
  const auto& files = package.manifest.files;
  Cache::Key key = {files.at(entry.file).sha256, files.at(entry.weights).sha256,
                    core().get_versions(kDevice).at(kDevice).buildNumber,
                    core().get_property(kDevice, ov::device::full_name)};
  key.insert(key.end(), features.begin(), features.end());
  key.insert(key.end(), {"LATENCY", bf16 ? "bf16" : "f32"});
  return key;
}

ov::CompiledModel compile(const std::string& graph, const std::string& weights,
                          const GraphEntry& entry, const ov::AnyMap& settings) {
  // The parser opens external weights by path: it gets a private copy of the verified bytes, so
  // that nothing can be replaced between check and load.
  try {
    const TemporaryFolder folder;
    const auto path = folder.path() / "graph.onnx";
    write_file(path, graph);
    write_file(folder.path() / std::filesystem::path(entry.weights).filename(), weights);
    return core().compile_model(core().read_model(path.string()), kDevice, settings);
  } catch (const ov::Exception& error) {
    throw BackendError(text("OpenVINO cannot compile ", entry.file, " (", last_line(error),
                            "): install the OpenVINO version that pyproject.toml names"));
  } catch (const std::filesystem::filesystem_error& error) {
    throw BackendError(text("a private copy of ", entry.file, " cannot be written (",
                            error.code().message(), "): name a folder with free space in TMPDIR"));
  }
}

ov::CompiledModel load(const Package& package, const GraphEntry& entry, const Cache& cache,
                       const ov::AnyMap& settings, Cache::Key key) {
  // Read, and so verified, on every start: a tampered package is refused even where its compiled
  // model is cached.
  const std::string graph = package.read(entry.file);
  const std::string weights = package.read(entry.weights);
  key.insert(key.begin(), "openvino");
  if (const auto blob = cache.load(key)) {
    std::istringstream stream(*blob);
    try {
      return core().import_model(stream, kDevice, settings);
    } catch (const ov::Exception&) {
      // From another build of OpenVINO: compile again.
    }
  }
  ov::CompiledModel model = compile(graph, weights, entry, settings);
  std::ostringstream exported;
  model.export_model(exported);
  cache.store(key, exported.str());
  return model;
}

class OpenVinoSession final : public Session {
 public:
  OpenVinoSession(const Package& package, const GraphEntry& entry, const Cache& cache, bool bf16,
                  std::optional<int> threads)
      : Session("openvino", entry.precision + (bf16 ? "+bf16" : ""), 1) {
    const Cache::Key key = model_key(package, entry, bf16);
    identity_ = "openvino";
    for (const auto& part : key) identity_ += " " + part;
    ov::CompiledModel model = load(package, entry, cache, configuration(bf16, threads), key);
    // The network's normalisation adds up its sums per thread, which rounds otherwise.
    identity_ += text(" ", model.get_property(ov::inference_num_threads), " threads");
    request_ = model.create_infer_request();
  }

  std::vector<std::uint8_t> run(const Inputs& inputs) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      for (std::size_t at = 0; at < inputs.size(); ++at) {
        const ov::Shape shape(inputs[at].shape.begin(), inputs[at].shape.end());
        // OpenVINO only reads inputs, but its tensors do not support const.
        auto* values = const_cast<float*>(inputs[at].values.data());
        request_.set_tensor(kInputNames[at], ov::Tensor(ov::element::f32, shape, values));
      }
      request_.infer();
      const ov::Tensor labels = request_.get_tensor(kLabelsName);
      return copy_labels(labels, inputs);
    } catch (const ov::Exception& error) {
      throw BackendError(text("OpenVINO failed on an image of ", join(inputs[0].shape, " x "),
                              " voxels (", last_line(error),
                              "): free memory, or report this with the scan's size"));
    }
  }

  const std::string& identity() const override { return identity_; }

 private:
  static std::vector<std::uint8_t> copy_labels(const ov::Tensor& labels, const Inputs& inputs) {
    const auto [i, j, k] = labels_shape(inputs);
    const ov::Shape expected = {1, static_cast<std::size_t>(i), static_cast<std::size_t>(j),
                                static_cast<std::size_t>(k)};
    if (labels.get_element_type() != ov::element::u8 || labels.get_shape() != expected) {
      throw BackendError(
          "the graph's labels are of an unexpected type or shape: build the package again");
    }
    const auto* values = labels.data<const std::uint8_t>();
    return {values, values + labels.get_size()};
  }

  std::string identity_;
  std::mutex mutex_;
  ov::InferRequest request_;
};

}  // namespace

std::unique_ptr<Session> open_openvino_session(const Package& package, const GraphEntry& entry,
                                               const Cache& cache, bool bf16,
                                               std::optional<int> threads) {
  return using_openvino(
      [&] { return std::make_unique<OpenVinoSession>(package, entry, cache, bf16, threads); });
}

std::optional<int> thread_count() {
  const char* given = std::getenv("RARE_TRT_THREADS");
  if (given == nullptr || *given == '\0') {
    const double allowed = cpu_quota();
    if (allowed >= cpus()) return std::nullopt;
    return std::max(1, static_cast<int>(std::ceil(allowed)));
  }
  const std::string digits(given);
  const bool whole = digits.size() <= 9 && digits.find_first_not_of("0123456789") == digits.npos;
  const int count = whole ? std::atoi(given) : 0;
  if (count > 0) return count;
  throw BackendError(text("RARE_TRT_THREADS is '", digits,
                          "'; expected a whole number of CPU threads from 1 up: correct it or "
                          "leave it out"));
}

double cpu_quota(const std::filesystem::path& root) {
  double least = std::numeric_limits<double>::infinity();
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == line.npos) continue;
    const auto top = root / "sys/fs/cgroup" / controllers;
    // In a container the path can be the host's name for the group that is its top.
    auto group = top;
    least = std::min(least, quota_of(group));
    for (const auto& part : std::filesystem::path(line.substr(second + 1)).relative_path()) {
      group /= part;
      least = std::min(least, quota_of(group));
    }
  }
  return least;
}

pid_t this_process(pid_t first) {
  const pid_t own = getpid();
  if (first == 0 || first == own) return own;
  throw BackendError(
      text("process ", own, " was forked from process ", first,
           ", which had loaded OpenVINO or an engine; expected a fork before that, because a fork "
           "leaves the threads behind that compute: segment in the forked processes only"));
}

std::vector<std::string> openvino_capabilities() {
  return using_openvino([] { return core().get_property(kDevice, ov::device::capabilities); });
}

}  // namespace rare_trt
