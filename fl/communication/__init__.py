"""What bytes take over a satellite link, in time, money and energy."""
