#include "launch_recurrence.cuh"

FUSEDLSTM_COMPILE_RECURRENCE(Float32Math)
