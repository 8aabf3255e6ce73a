<?php
// Keeps a message in a file of its own, and says SAVED when it is on disk.

// PHP drops what goes beyond post_max_size or max_input_vars, and takes what ends too early because its sender has gone:
// it runs the script all the same. The body comes last.
if (!isset($_POST['body']) || strlen(file_get_contents('php://input')) !== (int) $_SERVER['CONTENT_LENGTH']) {
    http_response_code(500);
    exit;
}
if ($_POST['subject'] === 'no, thank you') {
    exit('550 5.7.1 No, thank you');
}

// Does anybody still wait for the answer? PHP finds out by writing, over TCP by writing twice, and then ends the script:
// who has given up will send the message again, and it would be kept twice.
for ($i = 0; $i < 2; $i++) {
    echo "\n";
    flush();
}

$path = __DIR__ . '/kept/' . bin2hex(random_bytes(16));
$file = fopen("$path.new", 'x');
$written = $file && fwrite($file, json_encode(array_map('base64_encode', $_POST))) && fsync($file) && fclose($file);
if ($written && rename("$path.new", $path)) {
    echo 'SAVED';
}
