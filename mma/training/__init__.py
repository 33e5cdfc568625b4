"""Training of the MMA network: plain torch, any number of processes; `jobs.train_mma` spreads it by Ray Train."""
