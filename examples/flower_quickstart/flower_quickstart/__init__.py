"""A Flower app as quickstarts write it, with codecs around its messages."""
