"""What each part of the tracks is worth: arms without it, or with it changed, in the folds of the run."""
