"""A real site: a long-lived agent, whose parent speaks with the coordinator and whose child holds
the data, the networks and the GPU."""
