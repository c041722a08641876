//! StepPlan and StepResult: the only boundary between engine and workers.
