/* The sparse kernels at one level of vector instructions, for float32. */
#include "vectors.h"

#ifndef LEVEL
#define LEVEL portable
#endif

#define KERNEL(name) GLUE(GLUE(fxs_##name, float32), LEVEL)
#include "sparse_index.h"
#include "sparse_tiles.h"
#include "sparse_multiply.h"
#include "sparse_pack.h"
#include "sparse_grad.h"
#include "sparse_kept.h"
