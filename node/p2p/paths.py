"""Where nodes reach each other, below a node's address."""

STATUS_PATH = "/p2p/status"
MESSAGES_PATH = "/p2p/messages"
TRANSACTIONS_PATH = "/p2p/transactions"
