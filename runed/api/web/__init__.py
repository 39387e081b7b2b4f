"""The parts that the JSON APIs share: their errors, their requests and their routes."""
