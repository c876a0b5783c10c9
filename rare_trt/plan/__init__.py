"""What a scan needs of the network: its route, its resampling, its memory."""
