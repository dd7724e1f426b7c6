"""What a job needs and no result depends on: the code digest leaves out this folder."""
