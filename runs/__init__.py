"""What a command does: a run, a comparison or an evaluation is a function here."""
