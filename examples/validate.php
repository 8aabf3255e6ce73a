<?php
// Knows the recipients: says PASSED for a yes, and a reply of its own for a no.

$recipients = ['joe@example.com', 'ann@example.com'];

echo in_array($_GET['rcpt_to'] ?? '', $recipients, true) ? 'PASSED' : '550 5.1.1 Nobody of that name lives here';
