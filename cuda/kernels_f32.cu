#include "kernels.cuh"

template struct kaleido_cuda::Launch<float>;
