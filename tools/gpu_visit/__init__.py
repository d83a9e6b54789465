"""The first minutes on a GPU, which are rare: what `tools/gpu_check` runs there, in which order, and what it keeps.

    kit             what was built without a GPU and is taken along
    agenda          the steps of both parts, their shares of the time, and every case
    experiments/    the measurements, one file a step; `worker` runs them in processes that may hang or die
    pool, children  those processes: a deadline for each item, a new worker after a hang or a death
    device          the GPU as the experiments see it; the tests have one of their own
    report          rows as they come; the files, and the tables at the end
    findings        what the rows say of the planner's model and of the speed

The process that the user starts imports none of torch and never has a CUDA context: nothing can hang or kill it.
"""
