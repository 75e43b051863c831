// A stand-in for libcudart.so: pretend GPUs, on a machine without one. What its parts share.
//
// Work is put off until somebody waits for it, so a missing wait, a wrong stream or memory given
// back too early gives wrong numbers. What a GPU would refuse is refused; that and what it would
// leave undefined is kept as a fault, for the tests to ask. Kernels run on the SIMT harness.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#define RETURN_IF(expression) \
  if (const cudaError_t error_ = (expression)) return error_

namespace standin {

// ---- settings and errors: devices.cpp ----

// The variable STANDIN_<name>: one number, or a list with one for each device.
int64_t setting(const char* name, int64_t otherwise, int device = 0);

constexpr int kMaxDevices = 8;
int devices();  // that CUDA_VISIBLE_DEVICES lets be seen
int64_t total_bytes(int device);
constexpr size_t kSharedWithoutAsking = 48 << 10;
int64_t shared_bytes(int device);  // that a block may ask for

// One lock for everything; work runs under it too.
extern std::recursive_mutex everything;
using Lock = std::lock_guard<std::recursive_mutex>;

extern thread_local int current_device;
cudaError_t report(cudaError_t error, const std::string& text);  // what a caller may expect
cudaError_t fault(cudaError_t error, const std::string& text);   // what a caller did wrong
std::string text_of_last_error();
cudaError_t planned(const char* call);              // the failure that a test has asked for, once
const char* told(std::vector<std::string>& lines);  // for a test, one a line; forgets them

// ---- memory.cpp ----

void reserve_memory(int device);
int owner(const void* address);  // the device; -1: host memory
// Nothing if so many bytes from this address on are allocated on the device (-1: on any).
cudaError_t check_range(const void* address, size_t bytes, int device, const std::string& what);
// Whether the address is a little beyond an allocation: no fault while nobody goes there.
bool just_beyond(const void* address);

// While it lives, what runs may touch the memory of these devices.
class Access {
 public:
  explicit Access(std::set<int> devices);
  ~Access();
  Access(const Access&) = delete;

 private:
  const std::set<int> devices_;
};

// Names what runs, for a fault that ends the process: "stand-in: squeeze(x) touched ..."
extern std::string running;

// ---- streams.cpp ----

struct Mark {  // a place in a stream: a recorded event
  struct Stream* stream;
  bool done = false;
};
struct Op {
  std::string name;
  std::function<void()> run;
  std::shared_ptr<Mark> mark = nullptr;  // done once this has run
  std::shared_ptr<Mark> wait = nullptr;  // has to be done before
};
struct Stream {
  int device;
  unsigned flags;
  bool is_default = false;
  std::deque<Op> ops = {};
  struct Capture* capture = nullptr;

  bool blocking() const { return !(flags & cudaStreamNonBlocking); }
};
struct Event {
  int device;
  unsigned flags;
  std::shared_ptr<Mark> mark = nullptr;
  struct Capture* capture = nullptr;  // that it was recorded in, after so many operations
  Stream* captured_on = nullptr;
  size_t captured_at = 0;
};

void initialise();                  // before anything else, once
Stream* find(cudaStream_t handle);  // null: no such stream
Stream& default_stream(int device);
// The stream of a call that puts work on it: of the current device, not barred by a capture.
cudaError_t target(cudaStream_t handle, const char* call, Stream** out, bool any_device = false);
void enqueue(Stream& stream, Op op);
void finish(Stream& stream, const Mark* until = nullptr);  // runs what waits in it
void finish_device(int device);
cudaError_t state(int device);  // the error of work that has failed there

// ---- graphs.cpp ----

struct Graph {
  std::vector<Op> ops;
};
struct Capture {
  unsigned long long id;
  Stream* origin;
  cudaStreamCaptureMode mode;
  Graph* graph;
  std::map<Stream*, size_t> work, joined;  // operations of a stream; those that were waited for
  std::string broken = {};
};
// The fault of a call that no thread may make during a capture: one that waits, or allocates.
cudaError_t refused_in_capture(const char* call);
// The fault of using the default stream while a stream that it would wait for is captured.
cudaError_t implicit_in_capture(const Stream& stream, const char* call);
void join(Stream& stream, const Event& event);  // a stream waits for a captured event
bool is_active(const Capture* capture);

// ---- launches.cpp ----

void log_launch(const Stream& stream, const std::string& what);  // for tests

}  // namespace standin
