"""Building profiles of a trained network: one step after the other, each result kept in a work folder."""
