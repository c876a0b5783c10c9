#include "sessions/device.h"

#include <array>
#include <fstream>
#include <string>

#include "text.h"

namespace rare_trt {
namespace {

// The release of NVIDIA's kernel driver; empty where no file states it, as on a Jetson.
std::string driver_release() {
  for (const char* path : {"/sys/module/nvidia/version", "/proc/driver/nvidia/version"}) {
    std::ifstream file(path);
    std::string line;
    if (std::getline(file, line)) return line + " ";
  }
  return "";
}

}  // namespace

Device::Device() : driver_(cuda::Driver::loaded()) {
  try {
    check(driver_.cuInit(0));
    check(driver_.cuDeviceGet(&device_, 0));
    gpu_ = describe();
    check(driver_.cuDevicePrimaryCtxRetain(&context_, device_));
  } catch (const DeviceError& error) {
    throw BackendError(text("no NVIDIA GPU can be used here (", error.what(),
                            "): check the GPU and its driver, or use OpenVINO"));
  }
}

// A destructor cannot report an error; the driver frees the context with the process at the latest.
Device::~Device() { driver_.cuDevicePrimaryCtxRelease_v2(device_); }

Device::Current::Current(const Device& device) : driver_(device.driver_) {
  try {
    device.check(driver_.cuCtxPushCurrent_v2(device.context_));
  } catch (const DeviceError& error) {
    throw BackendError(text("the GPU cannot be reached (", error.what(),
                            "): close other programs on it and try again, or use OpenVINO"));
  }
}

Device::Current::~Current() {
  cuda::Context popped = nullptr;
  driver_.cuCtxPopCurrent_v2(&popped);
}

cuda::Address Device::allocate(std::size_t size) {
  cuda::Address address = 0;
  check(driver_.cuMemAlloc_v2(&address, size));
  return address;
}

void Device::free(cuda::Address address) { check(driver_.cuMemFree_v2(address)); }

HostBuffer Device::allocate_host(std::size_t size) {
  void* memory = nullptr;
  check(driver_.cuMemHostAlloc(&memory, size, cuda::kDeviceMap));
  HostBuffer buffer{static_cast<std::uint8_t*>(memory), 0, size};
  const cuda::Status status = driver_.cuMemHostGetDevicePointer_v2(&buffer.device, memory, 0);
  if (status != cuda::kSuccess) driver_.cuMemFreeHost(memory);
  check(status);
  return buffer;
}

void Device::free_host(const HostBuffer& buffer) { check(driver_.cuMemFreeHost(buffer.bytes)); }

void Device::copy_in(cuda::Address target, const void* source, std::size_t size, cuda::Stream on) {
  check(driver_.cuMemcpyHtoDAsync_v2(target, source, size, on));
}

void Device::copy_out(void* target, cuda::Address source, std::size_t size, cuda::Stream on) {
  check(driver_.cuMemcpyDtoHAsync_v2(target, source, size, on));
}

void Device::fill(cuda::Address target, std::uint8_t value, std::size_t size, cuda::Stream on) {
  check(driver_.cuMemsetD8Async(target, value, size, on));
}

cuda::Stream Device::create_stream() {
  cuda::Stream stream = nullptr;
  check(driver_.cuStreamCreate(&stream, cuda::kNonBlocking));
  return stream;
}

void Device::destroy(cuda::Stream stream) { check(driver_.cuStreamDestroy_v2(stream)); }

void Device::synchronize(cuda::Stream stream) { check(driver_.cuStreamSynchronize(stream)); }

cuda::Event Device::create_event() {
  cuda::Event event = nullptr;
  check(driver_.cuEventCreate(&event, cuda::kDefaultEvent));
  return event;
}

void Device::destroy(cuda::Event event) { check(driver_.cuEventDestroy_v2(event)); }

void Device::record(cuda::Event event, cuda::Stream on) { check(driver_.cuEventRecord(event, on)); }

void Device::wait(cuda::Event event) { check(driver_.cuEventSynchronize(event)); }

cuda::ExecutableGraph Device::capture(const std::function<void()>& work, cuda::Stream on) {
  cuda::Graph graph = nullptr;
  check(driver_.cuStreamBeginCapture_v2(on, cuda::kThreadLocal));
  try {
    work();
  } catch (...) {
    // The stream must leave capture mode in any case.
    driver_.cuStreamEndCapture(on, &graph);
    if (graph != nullptr) driver_.cuGraphDestroy(graph);
    throw;
  }
  check(driver_.cuStreamEndCapture(on, &graph));
  cuda::ExecutableGraph ready = nullptr;
  const cuda::Status instantiated = driver_.cuGraphInstantiateWithFlags(&ready, graph, 0);
  const cuda::Status destroyed = driver_.cuGraphDestroy(graph);
  if (instantiated == cuda::kSuccess && destroyed != cuda::kSuccess) {
    driver_.cuGraphExecDestroy(ready);
  }
  check(instantiated);
  check(destroyed);
  return ready;
}

void Device::launch(cuda::ExecutableGraph graph, cuda::Stream on) {
  check(driver_.cuGraphLaunch(graph, on));
}

void Device::destroy(cuda::ExecutableGraph graph) { check(driver_.cuGraphExecDestroy(graph)); }

Gpu Device::describe() const {
  std::array<char, 256> name{};
  check(driver_.cuDeviceGetName(name.data(), static_cast<int>(name.size()) - 1, device_));
  int version = 0;
  check(driver_.cuDriverGetVersion(&version));
  // Every Jetson with an Orin reports the name "Orin", whatever its size; see machine.py.
  const bool integrated = attribute(cuda::kIntegrated) != 0;
  std::string model = name.data();
  if (integrated) model += text(", ", attribute(cuda::kMultiprocessors), " multiprocessors");
  return {model, text(attribute(cuda::kCapabilityMajor), ".", attribute(cuda::kCapabilityMinor)),
          integrated, text(driver_release(), "CUDA ", version / 1000, ".", version % 1000 / 10)};
}

int Device::attribute(int which) const {
  int value = 0;
  check(driver_.cuDeviceGetAttribute(&value, which, device_));
  return value;
}

void Device::check(cuda::Status status) const {
  if (status == cuda::kSuccess) return;
  const char* name = nullptr;
  if (driver_.cuGetErrorName(status, &name) != cuda::kSuccess || name == nullptr) name = "?";
  if (status == cuda::kOutOfMemory) {
    throw DeviceMemoryError(text("the GPU is out of memory (", name, ")"));
  }
  throw DeviceError(text("CUDA reports ", name, " (", status, ")"));
}

}  // namespace rare_trt
