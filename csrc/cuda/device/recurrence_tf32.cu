#include "launch_recurrence.cuh"

FUSEDLSTM_COMPILE_RECURRENCE(Tf32Math)
