<?php
// Keeps a message in a file of its own, once: FastCGI can promise no more than that a message comes at least once, and
// a second time it comes with another trace header.

// PHP runs the script also when the message ends too early, because its sender has given up meanwhile.
if (!isset($_POST['body']) || strlen(file_get_contents('php://input')) !== (int) $_SERVER['CONTENT_LENGTH']) {
    http_response_code(500);
    exit;
}
$message = strstr($_POST['body'], 'From: <sender@example.org>');
$recipients = array_filter($_POST, fn($name) => str_starts_with($name, 'rcpt_to_'), ARRAY_FILTER_USE_KEY);
$path = __DIR__ . '/kept/' . hash('sha256', implode(' ', $recipients) . "\n" . $message);
$half = "$path." . bin2hex(random_bytes(8));
$kept = json_encode([array_values($recipients), base64_encode($_POST['body'])]);
$file = fopen($half, 'x');
if ($file && fwrite($file, $kept) === strlen($kept) && fsync($file) && fclose($file)) {
    if (@link($half, $path) || is_file($path)) {
        echo 'SAVED';
    }
}
@unlink($half);
