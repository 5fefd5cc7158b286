"""Networks against each other: size, speed, memory."""
