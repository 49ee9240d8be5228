"""The sections of a run's page, HTML each; one without data says so or is empty."""
