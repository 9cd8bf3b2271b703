/* The kernels of one element type. */
#include "groups.h"
#include "norm.h"
