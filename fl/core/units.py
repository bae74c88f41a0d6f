"""Units that figures are told in: a MB is 1,048,576 bytes, as in the users' guide."""

MIB = 1024**2
HOUR_S, DAY_S = 3_600, 86_400
