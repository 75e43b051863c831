// Captures and graphs: lists of operations, and what a capture forbids.
#include <algorithm>

#include "standin.h"

namespace standin {
namespace {

std::set<Graph*> graphs, executables;
std::set<Capture*> captures;  // once ended they are not deleted: events may name them
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

cudaError_t destroy(std::set<Graph*>& all, Graph* graph, const char* call) {
  Lock lock(everything);
  if (!all.erase(graph)) return fault(cudaErrorInvalidValue, call);
  delete graph;
  return cudaSuccess;
}

}  // namespace

bool is_active(const Capture* capture) { return captures.count(const_cast<Capture*>(capture)); }

cudaError_t refused_in_capture(const char* call) {
  for (Capture* capture : captures) {
    if (capture->mode != cudaStreamCaptureModeGlobal || thread_mode == cudaStreamCaptureModeRelaxed)
      continue;
    capture->broken = std::string(call) + " during a capture";
    return fault(cudaErrorStreamCaptureUnsupported, capture->broken);
  }
  return cudaSuccess;
}

cudaError_t implicit_in_capture(const Stream& stream, const char* call) {
  for (Capture* capture : captures) {
    const Stream& origin = *capture->origin;
    if (!stream.is_default || origin.device != stream.device || !origin.blocking()) continue;
    capture->broken = std::string(call) + " on the default stream during a capture";
    return fault(cudaErrorStreamCaptureImplicit, capture->broken);
  }
  return cudaSuccess;
}

void join(Stream& stream, const Event& event) {
  if (!stream.capture) finish(stream);
  stream.capture = event.capture;
  event.capture->work[&stream];
  size_t& joined = event.capture->joined[event.captured_on];
  joined = std::max(joined, event.captured_at);
}

}  // namespace standin

using namespace standin;

extern "C" {

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Lock lock(everything);
  Stream* stream = find(handle);
  if (!stream || stream->is_default || stream->capture)
    return fault(cudaErrorStreamCaptureUnsupported, "a capture of the default stream, or nested");
  static unsigned long long ids = 0;
  finish(*stream);
  auto* graph = *graphs.insert(new Graph).first;
  stream->capture = *captures.insert(new Capture{++ids, stream, mode, graph, {}, {}}).first;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* out) {
  Lock lock(everything);
  Stream* stream = find(handle);
  *out = nullptr;
  if (!stream || !stream->capture)
    return fault(cudaErrorIllegalState, "cudaStreamEndCapture without a capture");
  Capture* capture = stream->capture;
  bool unjoined = false;
  for (const auto& [other, count] : capture->work) {
    other->capture = nullptr;
    unjoined |= other != capture->origin && capture->joined[other] < count;
  }
  stream->capture = nullptr;
  captures.erase(capture);
  if (!capture->broken.empty()) return report(cudaErrorStreamCaptureInvalidated, capture->broken);
  if (unjoined)
    return fault(cudaErrorStreamCaptureUnjoined, "a captured stream was not joined to the first");
  *out = reinterpret_cast<cudaGraph_t>(capture->graph);
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
  Lock lock(everything);
  Stream* stream = find(handle);
  if (!stream) return fault(cudaErrorInvalidResourceHandle, "cudaStreamGetCaptureInfo");
  RETURN_IF(implicit_in_capture(*stream, "cudaStreamGetCaptureInfo"));
  const Capture* capture = stream->capture;
  *status = capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = capture ? reinterpret_cast<cudaGraph_t>(capture->graph) : nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(stream, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = reinterpret_cast<Graph*>(graph)->ops.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t graph,
                                          unsigned long long) {
  Lock lock(everything);
  auto* copy = *executables.insert(new Graph(*reinterpret_cast<Graph*>(graph))).first;
  *out = reinterpret_cast<cudaGraphExec_t>(copy);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream_handle) {
  Lock lock(everything);
  Stream* stream;
  RETURN_IF(target(stream_handle, "cudaGraphLaunch", &stream, true));
  auto* executable = reinterpret_cast<Graph*>(handle);
  if (!executables.count(executable)) return fault(cudaErrorInvalidValue, "cudaGraphLaunch");
  for (const Op& op : executable->ops) enqueue(*stream, op);
  return state(stream->device);
}
cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
  return destroy(graphs, reinterpret_cast<Graph*>(handle), "cudaGraphDestroy");
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
  return destroy(executables, reinterpret_cast<Graph*>(handle), "cudaGraphExecDestroy");
}

}  // extern "C"
