"""What every stage shares on a host: the stage contract, weight sets, conversations, checkpoints under torch."""
