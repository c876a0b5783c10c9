// The first GPU in its primary context: memory, streams, events and graphs.
//
// Every call throws DeviceError where CUDA reports an error. All but the constructor, Current and
// the destructor need the context to be current.
#pragma once

#include <cstdint>
#include <functional>

#include "errors.h"
#include "sessions/driver.h"
#include "sessions/machine.h"

namespace rare_trt {

// A CUDA call failed.
class DeviceError : public BackendError {
 public:
  using BackendError::BackendError;
};

// Not enough memory on the GPU, or pinned host memory.
class DeviceMemoryError : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

// Pinned host memory: its bytes, and the GPU's address of them.
struct HostBuffer {
  std::uint8_t* bytes = nullptr;
  cuda::Address device = 0;
  std::size_t size = 0;
};

class Device {
 public:
  // Throws BackendError where there is no GPU.
  Device();
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Makes the GPU's primary context current in the calling thread during its lifetime.
  class Current {
   public:
    explicit Current(const Device& device);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const cuda::Driver& driver_;
  };

  const Gpu& gpu() const { return gpu_; }

  cuda::Address allocate(std::size_t size);
  void free(cuda::Address address);
  // Memory that the GPU can read and write in place.
  HostBuffer allocate_host(std::size_t size);
  void free_host(const HostBuffer& buffer);

  // Queued on a stream; complete after waiting for it.
  void copy_in(cuda::Address target, const void* source, std::size_t size, cuda::Stream on);
  void copy_out(void* target, cuda::Address source, std::size_t size, cuda::Stream on);
  void fill(cuda::Address target, std::uint8_t value, std::size_t size, cuda::Stream on);

  cuda::Stream create_stream();
  void destroy(cuda::Stream stream);
  // Waits for all work queued on the stream.
  void synchronize(cuda::Stream stream);

  cuda::Event create_event();
  void destroy(cuda::Event event);
  void record(cuda::Event event, cuda::Stream on);
  // Waits for all work queued before the event.
  void wait(cuda::Event event);

  // A graph of what `work` queues on the stream, ready to launch; nothing runs.
  cuda::ExecutableGraph capture(const std::function<void()>& work, cuda::Stream on);
  void launch(cuda::ExecutableGraph graph, cuda::Stream on);
  void destroy(cuda::ExecutableGraph graph);

 private:
  Gpu describe() const;
  int attribute(int which) const;
  // Throws DeviceError unless `status` is success.
  void check(cuda::Status status) const;

  const cuda::Driver& driver_;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
  Gpu gpu_;
};

}  // namespace rare_trt
