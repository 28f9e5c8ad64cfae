# Fits a polynomial to a sine by gradient descent with momentum. Knows nothing of sthyper: it prints its reports, and
# keeps its weights in a folder if one is given, so that it can go on where it was.
#
# By hand: awk -v lr=0.3 -v momentum=0.9 -v degree=5 -v epochs=27 -f fit_sine.awk

BEGIN {
    n = 100
    for (i = 1; i <= n; i++) {
        x[i] = 2 * i / n - 1
        y[i] = sin(3 * x[i])
    }
    done = 0
    if (folder != "") {
        system("mkdir -p '" folder "'")
        file = folder "/weights"
        if ((getline line < file) > 0) {
            split(line, state, " ")
            done = state[1]
            for (k = 0; k <= degree; k++) {
                w[k] = state[2 + 2 * k]
                v[k] = state[3 + 2 * k]
            }
            close(file)
        }
    }
    for (epoch = done + 1; epoch <= epochs; epoch++) {
        for (step = 1; step <= 10; step++)
            loss = descend()
        save(epoch)
        # The checkpoint comes first: the report commits it. Without fflush the tuner would hear of it at the end.
        printf "[tune-metric]: {\"epoch\": %d, \"loss\": %.6g}\n", epoch, loss
        fflush()
    }
}

function descend(    i, k, p, power, error, total, gradient) {
    total = 0
    for (k = 0; k <= degree; k++)
        gradient[k] = 0
    for (i = 1; i <= n; i++) {
        p = 0
        power = 1
        for (k = 0; k <= degree; k++) {
            p += w[k] * power
            power *= x[i]
        }
        error = p - y[i]
        total += error * error / n
        power = 1
        for (k = 0; k <= degree; k++) {
            gradient[k] += 2 * error * power / n
            power *= x[i]
        }
    }
    for (k = 0; k <= degree; k++) {
        v[k] = momentum * v[k] - lr * gradient[k]
        w[k] += v[k]
    }
    return total
}

function save(epoch,    k, line) {
    if (folder == "")
        return
    line = epoch
    for (k = 0; k <= degree; k++)
        line = line sprintf(" %.17g %.17g", w[k], v[k])
    # Under its name only when it is whole.
    print line > (file ".tmp")
    close(file ".tmp")
    system("mv '" file ".tmp' '" file "'")
}
