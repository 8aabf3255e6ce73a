"""MailDiranasaurus: a mail server of its own that is made of guerrilla."""
