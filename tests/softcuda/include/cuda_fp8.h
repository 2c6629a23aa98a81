// What kernels include; everything is in softcuda.h.
