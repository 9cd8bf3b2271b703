/* All kernels at one level of vector instructions, for float32 and for bfloat16. */
#include "common.h"

#ifndef LEVEL
#define LEVEL portable
#endif

#define T float
#define LOAD(value) of_float(value)
#define STORE(value) to_float(value)
#define TYPED(name) GLUE(name, float)
#define KERNEL(name) GLUE(GLUE(fxs_##name, float32), LEVEL)
#include "typed.h"
#include "innermost.h"
#undef T
#undef LOAD
#undef STORE
#undef TYPED
#undef KERNEL

#define T bfloat16
#define LOAD(value) of_bfloat16(value)
#define STORE(value) to_bfloat16(value)
#define TYPED(name) GLUE(name, bfloat16)
#define KERNEL(name) GLUE(GLUE(fxs_##name, bfloat16), LEVEL)
#include "typed.h"
