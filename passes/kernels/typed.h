/* The kernels of one element type. */
#include "norm.h"
