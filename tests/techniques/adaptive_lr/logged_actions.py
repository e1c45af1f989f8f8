"""What the log of a run says that the adaptive learning rate did."""


def actions(trainer):
    told = [entry["adaptive_lr/action"] for entry in trainer.state.log_history if "adaptive_lr/action" in entry]
    return [action for some in told for action in some.split(", ")]


def steps_of_actions(trainer):
    return [entry["adaptive_lr/step"] for entry in trainer.state.log_history if "adaptive_lr/action" in entry]
