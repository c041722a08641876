// Integer types, and what every function of a device is.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

// Whether kernels are built as for a GB10. The option AS_GB10 builds a Hopper's so: a GB10's tiles, stages and registers, its
// placement of codes, no warpgroup products, and block-scaled ones with a twin of the instruction (fp8.cuh), so that all of it
// can be run on a Hopper.
#if defined(AS_GB10) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200)
#define AS_ON_GB10 1
#else
#define AS_ON_GB10 0
#endif
