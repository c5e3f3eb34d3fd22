#include "kernels_power.cuh"

template struct kaleido_cuda::Launch<kaleido_cuda::Complex<double>>;
template struct kaleido_cuda::LaunchPower<kaleido_cuda::Complex<double>>;
