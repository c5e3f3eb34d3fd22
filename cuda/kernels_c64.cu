#include "kernels_power.cuh"

template struct kaleido_cuda::Launch<kaleido_cuda::Complex<float>>;
template struct kaleido_cuda::LaunchPower<kaleido_cuda::Complex<float>>;
