// Streams and events: queues of what is still to be done.
#include <utility>

#include "standin.h"

namespace standin {
namespace {

std::set<Stream*> streams;  // once destroyed they are not deleted: marks may name them
std::set<Event*> events;
Stream* defaults[kMaxDevices];
std::string failed[kMaxDevices];  // by work that ran: every later call hears of it

void run_front(Stream& stream) {
  Op op = std::move(stream.ops.front());
  stream.ops.pop_front();
  if (op.wait && !op.wait->done) finish(*op.wait->stream, op.wait.get());
  if (op.run && failed[stream.device].empty()) {
    const std::string outer = std::exchange(running, op.name);
    try {
      op.run();
    } catch (const std::exception& error) {
      failed[stream.device] = error.what();
      fault(cudaErrorLaunchFailure, error.what());
    }
    running = outer;
  }
  if (op.mark) op.mark->done = true;
}

Event* find(cudaEvent_t handle) {
  auto* event = reinterpret_cast<Event*>(handle);
  return events.count(event) ? event : nullptr;
}
cudaError_t no_such(const char* call) {
  return fault(cudaErrorInvalidResourceHandle, std::string(call) + ": no such stream or event");
}

}  // namespace

void initialise() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (int device = 0; device < devices(); device++) {
      reserve_memory(device);
      streams.insert(defaults[device] = new Stream{device, 0, true});
    }
  });
}

Stream& default_stream(int device) { return *defaults[device]; }

Stream* find(cudaStream_t handle) {
  initialise();
  if (handle == nullptr || handle == cudaStreamLegacy) return defaults[current_device];
  auto* stream = reinterpret_cast<Stream*>(handle);
  return streams.count(stream) ? stream : nullptr;
}

cudaError_t target(cudaStream_t handle, const char* call, Stream** out, bool any_device) {
  *out = find(handle);
  if (!*out) return no_such(call);
  if (!any_device && (*out)->device != current_device)
    return fault(cudaErrorInvalidResourceHandle,
                 std::string(call) + ": the stream is of device " + std::to_string((*out)->device) +
                     ", the current device is " + std::to_string(current_device));
  RETURN_IF(implicit_in_capture(**out, call));
  return state((*out)->device);
}

// The default stream waits for the blocking streams of its device, and they for it.
void enqueue(Stream& stream, Op op) {
  if (Capture* capture = stream.capture) {
    capture->work[&stream]++;
    capture->graph->ops.push_back(std::move(op));
    return;
  }
  for (Stream* other : streams) {
    const bool tied = other != &stream && other->device == stream.device && !other->capture &&
                      stream.blocking() && other->blocking() &&
                      (stream.is_default || other->is_default);
    if (!tied || other->ops.empty()) continue;
    auto mark = std::make_shared<Mark>(Mark{other});
    other->ops.push_back({"", nullptr, mark});
    stream.ops.push_back({"", nullptr, nullptr, mark});
  }
  stream.ops.push_back(std::move(op));
}

void finish(Stream& stream, const Mark* until) {
  if (stream.ops.empty() || (until && until->done)) return;
  const Access access({stream.device});  // once for all of it: opening and closing is dear
  while (!stream.ops.empty() && !(until && until->done)) run_front(stream);
}

void finish_device(int device) {
  for (Stream* stream : streams) {
    if (stream->device == device) finish(*stream);
  }
}

cudaError_t state(int device) {
  return failed[device].empty() ? cudaSuccess : report(cudaErrorLaunchFailure, failed[device]);
}

}  // namespace standin

using namespace standin;

extern "C" {

int standin_pending() {  // operations that nobody has waited for
  Lock lock(everything);
  size_t sum = 0;
  for (const Stream* stream : streams) sum += stream->ops.size();
  return static_cast<int>(sum);
}

void standin_break(int device) {  // as if a kernel of somebody else had failed
  Lock lock(everything);
  failed[device] = "a kernel of somebody else has failed";
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int) {
  Lock lock(everything);
  initialise();
  auto* stream = *streams.insert(new Stream{current_device, flags}).first;
  *out = reinterpret_cast<cudaStream_t>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* out) { return cudaStreamCreateWithPriority(out, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  Lock lock(everything);
  Stream* stream = find(handle);
  if (!stream || stream->is_default) return no_such("cudaStreamDestroy");
  finish(*stream);
  streams.erase(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  return *priority = 0, cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Lock lock(everything);
  Stream* stream = find(handle);
  if (!stream) return no_such("cudaStreamSynchronize");
  RETURN_IF(refused_in_capture("cudaStreamSynchronize"));
  finish(*stream);
  return state(stream->device);
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
  Lock lock(everything);
  Stream* stream = find(handle);
  if (!stream) return no_such("cudaStreamQuery");
  RETURN_IF(refused_in_capture("cudaStreamQuery"));
  if (stream->ops.empty()) return state(stream->device);
  const Access access({stream->device});
  run_front(*stream);  // who asks again and again gets there
  return report(cudaErrorNotReady, "not ready");
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  Lock lock(everything);
  Stream* stream = find(handle);
  Event* event = find(event_handle);
  if (!stream || !event) return no_such("cudaStreamWaitEvent");
  if (event->capture) {
    if (!is_active(event->capture))
      return fault(cudaErrorCapturedEvent, "cudaStreamWaitEvent: of a capture that has ended");
    join(*stream, *event);
  } else if (event->mark && !event->mark->done) {
    if (stream->capture) {
      stream->capture->broken = "a captured stream waits for work outside of the capture";
      return fault(cudaErrorStreamCaptureIsolation, stream->capture->broken);
    }
    enqueue(*stream, {"", nullptr, nullptr, event->mark});
  }
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
  Lock lock(everything);
  initialise();
  auto* event = *events.insert(new Event{current_device, flags}).first;
  *out = reinterpret_cast<cudaEvent_t>(event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* out) { return cudaEventCreateWithFlags(out, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  Lock lock(everything);
  Event* event = find(handle);
  if (!event) return no_such("cudaEventDestroy");
  events.erase(event);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
  Lock lock(everything);
  Stream* stream = find(stream_handle);
  Event* event = find(handle);
  if (!stream || !event) return no_such("cudaEventRecord");
  if (event->device != stream->device)
    return fault(cudaErrorInvalidResourceHandle,
                 "cudaEventRecord: event and stream are of different devices");
  event->capture = stream->capture;
  if (stream->capture) {
    event->captured_on = stream;
    event->captured_at = stream->capture->work[stream];
    return cudaSuccess;
  }
  event->mark = std::make_shared<Mark>(Mark{stream});
  enqueue(*stream, {"", nullptr, event->mark});
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
  Lock lock(everything);
  Event* event = find(handle);
  if (!event) return no_such("cudaEventQuery");
  if (event->capture) return fault(cudaErrorCapturedEvent, "cudaEventQuery of a captured event");
  RETURN_IF(refused_in_capture("cudaEventQuery"));
  if (!event->mark || event->mark->done) return cudaSuccess;
  const Access access({event->mark->stream->device});
  run_front(*event->mark->stream);
  return report(cudaErrorNotReady, "not ready");
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  Lock lock(everything);
  Event* event = find(handle);
  if (!event) return no_such("cudaEventSynchronize");
  RETURN_IF(refused_in_capture("cudaEventSynchronize"));
  if (event->mark) finish(*event->mark->stream, event->mark.get());
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  Lock lock(everything);
  for (const Event* event : {find(from), find(to)}) {
    if (!event || event->flags & cudaEventDisableTiming || !event->mark)
      return no_such("cudaEventElapsedTime, with a time,");
    if (!event->mark->done) return report(cudaErrorNotReady, "not ready");
  }
  *milliseconds = 1;  // nothing here takes any known time
  return cudaSuccess;
}

}  // extern "C"
