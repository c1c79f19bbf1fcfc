#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <source_location>

namespace elwise::cuda {

/// Throws Error with the call, its place and CUDA's words unless `status` is success.
void check(cudaError_t status, const char* call,
           std::source_location place = std::source_location::current());

#define ELWISE_CUDA_CHECK(call) ::elwise::cuda::check((call), #call)

/// The device that this thread's calls work on (set_device in core/cuda_backend.h).
int current_device();

/// Makes `device` the current one until the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_;
};

/// A queue of work on the device that is current when it is made. Streams do not wait for each other but
/// through events.
class Stream {
 public:
  Stream();
  /// Waits for its work.
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t handle() const { return handle_; }
  int device() const { return device_; }

 private:
  int device_;
  cudaStream_t handle_;
};

/// The calling thread's stream of the current device: where kernels run and copies go. Each device has one
/// that all threads share until a StreamGuard chooses another.
cudaStream_t current_stream();

/// Makes `stream` the calling thread's stream of its device until the end of the scope. Memory that is
/// allocated meanwhile belongs to it (record_use).
class StreamGuard {
 public:
  explicit StreamGuard(const Stream& stream);
  ~StreamGuard();
  StreamGuard(const StreamGuard&) = delete;
  StreamGuard& operator=(const StreamGuard&) = delete;

 private:
  DeviceGuard device_;
  int index_;
  cudaStream_t previous_;
};

/// A point in a stream's work.
class Event {
 public:
  enum class Timing : uint8_t { off, on };
  explicit Event(Timing timing = Timing::off);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream);
  bool done() const;
  void synchronize() const;
  /// Work that `stream` is given from now on waits for the event.
  void block(cudaStream_t stream) const;
  /// Time between two events that are done; both with Timing::on.
  float milliseconds_since(const Event& start) const;

 private:
  cudaEvent_t handle_ = nullptr;
};

/// Host memory that the device reads and writes directly.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(int64_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  char* data() const { return static_cast<char*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
};

/// A block of device memory belongs to the stream that was current when it was allocated: once freed, that
/// stream's later work may use it. Call this for a block (what Storage::data gives) that another stream uses
/// too: freed, it is handed on only when that stream's work until then is done.
void record_use(const void* block, cudaStream_t stream);

/// Scratch of the calling thread's kernels on the current stream, valid until the next of them that asks for
/// it. Throws Error for more than kWorkspaceBytes. It is not counted: kernels whose scratch grows with the
/// shape get it as an argument.
void* workspace(int64_t bytes);
inline constexpr int64_t kWorkspaceBytes = int64_t{8} << 20;
/// Frees the calling thread's of the current device; the next kernel that asks gets a new one.
void release_workspaces();

/// What a kernel found wrong with its input (cuda/input_fault.cuh). Host memory that the device writes; read
/// when the host waits.
struct InputFault {
  unsigned claimed = 0;  // by the first thread that finds one
  unsigned found = 0;    // set last
  int kernel = 0;        // an IndexKernel
  int64_t index = 0;
  int64_t position = 0;
  int64_t size = 0;
};
/// The current device's, as its kernels see it.
InputFault* input_fault();

/// Kernels that check indices on the device.
enum class IndexKernel : int { index_select, gather, cross_entropy };

/// Multiprocessors of the current device.
int multiprocessors();

}  // namespace elwise::cuda
