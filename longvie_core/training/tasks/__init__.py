"""What is trained, and on what: tasks for the loop, with their batches, losses, sheets and exports."""
