<?php
// Knows the recipients.

switch ($_GET['rcpt_to']) {
    case 'joe@example.com':
    case '"jo+e &=%"@example.com':
        exit('PASSED');
    case 'full@example.com':
        exit('452 4.2.2 Mailbox full');
    case 'outage@example.com':
        http_response_code(503);
        exit('PASSED');
    case 'crash@example.com':
        no_such_function();
    case 'logged@example.com':
        error_log('somebody asks');
        exit('PASSED');
    case 'exit@example.com':
        echo 'PASSED';
        exit(3);
    default:
        exit('unknown');
}
