// A fake TensorRT over the fake CUDA driver (tests/fake_cuda), as strict as the real one.
//
// The content of an engine's file is the path of an ONNX graph. Contexts compute labels with
// OpenVINO from that graph, in stream order, at the addresses they were given. Use that the real
// library leaves undefined is recorded in `violations`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

// The fake driver's own functions.
extern "C" {
long fake_reset(void);
void fake_set_devices(int count);
void fake_set_device(const char* name, int major, int minor, int integrated, std::size_t total);
int fake_fail(const char* name, int code, long after);
void fake_clear_failures(void);
void fake_break(int code);
long fake_calls(const char* name);
std::size_t fake_room(std::uintptr_t address);
std::size_t fake_live_device_bytes(void);
std::size_t fake_live_host_bytes(void);
long fake_live_handles(void);
long fake_pending(void);
int cuLaunchHostFunc(void* stream, void (*function)(void*), void* argument);
int cuMemAlloc_v2(unsigned long long* address, std::size_t size);
int cuMemFree_v2(unsigned long long address);
int cuCtxGetCurrent(void** context);
int cuStreamIsCapturing(void* stream, int* status);
}

namespace rare_trt {

struct FakeTensorRt {
  static FakeTensorRt& instance();

  // Makes the next call of `function` fail as the real one fails.
  void fail(const std::string& function) { faults[function] = 1; }
  bool failing(const std::string& function);

  static constexpr const char* kVersion = "10.13.3.9";

  // The error of runs: "", "nothing" (labels are not written), "zeros", "replays" (a graph is right
  // the first time only).
  std::string spoil;
  std::map<std::string, int> faults;
  std::vector<std::string> violations;
  int enqueued = 0, computed = 0, live_engines = 0, live_contexts = 0;
};

}  // namespace rare_trt
