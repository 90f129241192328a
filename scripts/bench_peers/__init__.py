"""A node beside peers that do the same work: job queues, a web framework, a development chain.

work       what everybody is asked, and what a driver reports
runners    drivers and workers, a module each; those of peers run in an environment of their own
servers    databases and the chain, started on the loopback and stopped
peers      who is measured, and how each is started
table      medians, ratios, goals; plots draws them
"""
