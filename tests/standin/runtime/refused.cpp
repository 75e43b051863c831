// What torch links against and no test needs. Declared here, for the signatures do not matter.
extern "C" {
int standin_refuse(const char* name);
#define REFUSE(name) \
  int name() { return standin_refuse(#name); }
REFUSE(cudaDeviceEnablePeerAccess)
REFUSE(cudaDeviceGetDefaultMemPool)
REFUSE(cudaFreeAsync)
REFUSE(cudaGetSymbolAddress)
REFUSE(cudaGraphDebugDotPrint)
REFUSE(cudaGraphNodeGetDependencies)
REFUSE(cudaHostRegister)
REFUSE(cudaHostUnregister)
REFUSE(cudaIpcCloseMemHandle)
REFUSE(cudaIpcGetEventHandle)
REFUSE(cudaIpcGetMemHandle)
REFUSE(cudaIpcOpenEventHandle)
REFUSE(cudaIpcOpenMemHandle)
REFUSE(cudaLaunchCooperativeKernel)
REFUSE(cudaLaunchHostFunc)
REFUSE(cudaMallocAsync)
REFUSE(cudaMemPoolGetAttribute)
REFUSE(cudaMemPoolSetAccess)
REFUSE(cudaMemPoolSetAttribute)
REFUSE(cudaMemPoolTrimTo)
REFUSE(cudaMemcpy2DAsync)
REFUSE(cudaMemcpyToSymbol)
REFUSE(cudaStreamAddCallback)
}
